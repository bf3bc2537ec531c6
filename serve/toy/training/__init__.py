"""Training of the toys: hours of one CPU core each. No module that serves imports it.

prompts.py    prompts and answers of each family   tokenizer.py  every word of the scenes is one token
nets.py       LLaVA-1.5 and PaliGemma, small       corpus.py     scenes as arrays, packed questions
recipes.py    size, seed and phases of each toy    train.py      the training loop
muon.py       the optimizer                        codec.py      masks as sixteen codes, in PaliGemma's file format
export.py     the published checkpoint layout      evaluate.py   accuracy on fresh scenes, with floors
album.py      example images, in scenes/          lessons.py    labels and questions of scenes
"""

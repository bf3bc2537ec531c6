"""How the toys were made: about an hour of one CPU core each. Nothing that serves imports it.

prompts.py    each family's exact words            tokenizer.py  every word of the world one token
nets.py       LLaVA-1.5 and PaliGemma, small       corpus.py     labels for patches, packs of questions
recipes.py    what each toy is                     train.py      the phases
muon.py       the optimizer                        codec.py      masks as sixteen codes, in PaliGemma's file format
export.py     the published checkpoint layout      evaluate.py   accuracy on fresh scenes, with floors
album.py      pictures to show, in scenes/
"""

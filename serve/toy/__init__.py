"""A small world of drawn shapes, and four small models trained on it: what Diptych serves where there is no GPU.

world.py      scenes, drawn from a seed            questions.py  what can be asked of a scene, and the truth
prompts.py    each family's exact words            tokenizer.py  every word of the world one token
nets.py       LLaVA-1.5 and PaliGemma, small       corpus.py     labels for patches, packs of questions
masks.py      which pixels a shape covers          codec.py      masks as sixteen codes, in PaliGemma's file format
recipes.py    what each toy is                     train.py      phases, about an hour of one CPU core
muon.py       the optimizer
export.py     the published checkpoint layout      evaluate.py   accuracy on fresh scenes, with floors
album.py      pictures to show, in scenes/

llava/, llava-b/, paligemma/ and paligemma-b/ are the checkpoints; README.md says how they were made and how they fare.

The toys are real LLaVA and PaliGemma architectures and toys all the same: about photographs they know nothing.
"""

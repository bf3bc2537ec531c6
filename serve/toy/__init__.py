"""A small world of drawn shapes, and four small models trained on it: what Diptych serves where there is no GPU.

world.py      scenes, drawn from a seed
questions.py  what can be asked of a scene, and the truth
masks.py      which pixels a shape covers
scenes/       pictures to show
training/     how the checkpoints were made

llava/, llava-b/, paligemma/ and paligemma-b/ are the checkpoints; README.md says how they were made and how they fare.

The toys are real LLaVA and PaliGemma architectures and toys all the same: about photographs they know nothing.
"""

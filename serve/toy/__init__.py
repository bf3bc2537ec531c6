"""Drawn scenes of simple shapes, and four small models trained on them, for a machine without a GPU.

world.py      simple scenes, drawn from a seed, for checks and load tests
questions.py  questions about such a scene, with their true answers
probe_scenes.py  scenes that tell coordinate contracts apart
masks.py      true masks of shapes
scenes/       example images
varied/       the scenes and the language that the toys are trained on
training/     the code that trained the checkpoints

llava/, llava-b/, paligemma/ and paligemma-b/ are the checkpoints; README.md has their recipes and
accuracy. They have the architectures of LLaVA and PaliGemma but know nothing about photographs.
"""

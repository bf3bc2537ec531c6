"""Drawn scenes of simple shapes, and four small models trained on them, for a machine without a GPU.

world.py      scenes, drawn from a seed
questions.py  questions about a scene, with their true answers
probe_scenes.py  scenes that tell coordinate contracts apart
masks.py      true masks of shapes
scenes/       example images
varied/       harder scenes and the language about them, for the next toys
training/     the code that trained the checkpoints

llava/, llava-b/, paligemma/ and paligemma-b/ are the checkpoints; README.md has their recipes and
accuracy. They have the architectures of LLaVA and PaliGemma but know nothing about photographs.
"""

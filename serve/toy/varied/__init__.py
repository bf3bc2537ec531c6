"""Varied scenes and the language about them: what the toys are trained on.

names.py    colours, shapes, words and fonts, with their other names   scenes.py   scenes, drawing, true masks
facts.py    what a fact is, and which replies are right                kinds.py    what is true of a scene, kind by kind
grammar.py  questions to train on                                      exam.py     a second language, for evaluation
"""

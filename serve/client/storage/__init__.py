"""Reads the pictures of a large run, and writes its answers: on this machine or in an object store.

store.py    files below an address: a folder, or s3:// and gs:// by fsspec
sources.py  pictures, one after the other: of a folder, tar or parquet files, a list; and which of them a shard has
parts.py    answers as the parts of a folder, so that a run in an object store can go on after a kill
names.py    a set of millions of names in little memory
"""

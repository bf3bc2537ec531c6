"""Many images at once: `diptych run` over a folder, and `diptych evaluate` on a labelled set.

Both are ordinary clients of a running server over HTTP.
"""

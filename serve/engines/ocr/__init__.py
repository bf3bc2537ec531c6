"""Reads the text in images by RapidOCR, on a processor: lines of text, and where words and phrases stand."""

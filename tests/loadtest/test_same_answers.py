"""The comparison of two checkouts' answers."""

from loadtest.same_answers import compare
from serve.client.evaluation.items import Item


def test_results_that_differ_are_counted_and_printed() -> None:
    items = [Item(name, name, "vqa", {}, {}, lambda: b"") for name in ("first", "second")]
    now = {"first": {"a": {"text": "red"}, "merged": {"text": "red"}}, "second": {"merged": {"text": "two"}}}
    before = {"first": now["first"], "second": {"a": None, "merged": {"text": "three"}}}
    equal, differences = compare(items, now, before)
    assert equal == [("vqa", "a", "2", "2"), ("vqa", "merged", "2", "1")]
    assert differences == ['second merged: {"text": "three"} is now {"text": "two"}']

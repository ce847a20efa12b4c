"""Whether a study is still what it was: model, data, recipe and code."""

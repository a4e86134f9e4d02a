"""Readers: from files of any kind, data sets of the Hub and the embedded stories to documents."""

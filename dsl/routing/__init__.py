"""Statements about rows that go to the rank that has their expert: `experts`."""

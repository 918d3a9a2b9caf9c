"""Preferences from people: a page to vote on, a store of votes, and which pairs are shown to whom."""

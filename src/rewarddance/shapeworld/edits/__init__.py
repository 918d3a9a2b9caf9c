"""Edits of ShapeWorld: instructions, source scenes, their oracle, and preferences."""

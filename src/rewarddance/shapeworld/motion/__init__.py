"""Videos of ShapeWorld: prompts about motion, scripts, frames, and their oracle."""

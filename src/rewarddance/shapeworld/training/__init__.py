"""How the bundled ShapeWorld checkpoints are made, from nothing."""

"""ShapeWorld: prompts about coloured shapes, a renderer, an exact oracle that reads pixels, and simulated annotators.

It is a place to test claims about rewards: its judges are small checkpoints of real transformers classes, its
generators of real diffusers pipelines. It shares its name, and the idea of exact scenes, with the data set of Kuhnle
and Copestake (2017, arXiv 1704.04517), and nothing else.
"""

"""A judge inside other people's trainers, one file each; what they share is in `scorer` and `references`."""

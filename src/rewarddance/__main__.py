"""`python -m rewarddance`: how torchrun and accelerate launch start a command."""

from rewarddance.cli import main

main()

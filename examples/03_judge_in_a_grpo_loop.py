"""A judge as the reward of a foreign GRPO loop: a function (images, prompts, metadata) -> (scores, info).

The policy here is as small as one can be, a Gaussian over the pixels of one picture; the loop is that of any trainer.

python examples/03_judge_in_a_grpo_loop.py [JUDGE]
"""

import sys

import torch

from rewarddance import load_reward

prompt, group, sigma = "a red circle", 8, 0.2
judge = load_reward(sys.argv[1] if len(sys.argv) > 1 else "shapeworld-reward")
reward_fn = judge.reward_fn()  # flow_grpo, DiffusionNFT and others call it as it is

mean = torch.full((3, 32, 32), 0.5, requires_grad=True)
optimizer = torch.optim.Adam([mean], lr=0.05)
for step in range(3):
    with torch.no_grad():
        images = (mean + sigma * torch.randn(group, 3, 32, 32)).clamp(0, 1)
    scores, info = reward_fn(images, [prompt] * group, [{}] * group)
    scores = torch.as_tensor(scores)
    advantages = (scores - scores.mean()) / (scores.std() + 1e-4)
    log_prob = -((images - mean) ** 2).mean((1, 2, 3)) / (2 * sigma**2)
    loss = -(advantages * log_prob).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: reward {scores.mean():.3f}, between {scores.min():.3f} and {scores.max():.3f}")

"""How a judge is served. Nothing heavy is imported here, so that help is quick."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from rewarddance.runtime.config import Recipe


class ServeOptions(Recipe):
    """The server's own options."""

    host: str = "127.0.0.1"
    """The address to listen at. Any other than this machine's own needs a token in the environment."""
    port: int = Field(default=8000, ge=0, le=65535)
    """The port; 0 takes a free one, which is printed."""
    token_env: str = "REWARDDANCE_TOKEN"
    """The environment variable that holds the bearer token; where it is set, every request needs it."""
    max_batch: int = Field(default=256, ge=1)
    """Questions that the judge is asked together."""
    gradient_batch: int = Field(default=16, ge=1)
    """Questions whose gradient is taken together."""
    wait_ms: float = Field(default=5.0, ge=0, le=1000)
    """Milliseconds that a question waits for company at most, while others keep coming."""
    queue: int = Field(default=4096, ge=1)
    """Questions that may wait; beyond it requests are answered with status 429."""
    max_questions: int = Field(default=400, ge=1)
    """Questions of a request."""
    max_body_mb: float = Field(default=256.0, gt=0)
    """Megabytes of a request."""
    max_pixels: int = Field(default=1 << 26, ge=1)
    """Frames times height times width, of all pictures of a request."""
    max_waiting_mb: float = Field(default=4096.0, gt=0)
    """Megabytes of all requests that are read, waiting or judged; beyond it the status is 429."""
    cache_mb: float = Field(default=512.0, ge=0)
    """Megabytes of pixels that are kept, so that a picture sent again is known again."""
    prefix_cache_mb: float = Field(default=1024.0, ge=0)
    """Megabytes of keys and values that the judge keeps of what it has read before candidates: instruction, prompt and
    reference. Questions that come back to them later read the candidate alone."""
    references: Path | None = None
    """Pictures to compare with where a question brings none: a folder of pictures with their prompts in .txt files,
    rows {"prompt", "reference"} in a .jsonl file, or the folder references of an align run."""
    shutdown_seconds: int = Field(default=30, ge=0)
    """Seconds that requests in flight have to be answered in when the server is told to end."""

    @model_validator(mode="after")
    def _fits(self) -> ServeOptions:
        if self.max_questions > self.queue:
            raise ValueError(f"{self.max_questions} questions of a request do not fit into a queue of {self.queue}")
        return self

    @property
    def max_body(self) -> int:
        """In bytes."""
        return int(self.max_body_mb * 1e6)

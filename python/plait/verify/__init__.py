"""plait verify: trains a few steps at several layouts and says where their bits part."""

from plait.verify.run import verify

__all__ = ["verify"]

"""Ranks: who am I, how do ranks talk, and how does a step run on all of them."""

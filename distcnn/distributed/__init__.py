"""Ranks: who am I, how do ranks meet, talk, stop and end."""

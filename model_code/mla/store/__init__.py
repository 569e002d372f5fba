"""The shared store of latents: blocks of a prompt's cache that one node computed and all may read.

A value that is wrong, cut short or stale is a miss, and so is every failure of the store: nothing
in here can change an answer, or make a request fail.
"""

"""Ray, for more than one machine: `serving` in Ray Serve, `scoring` with Ray Data; no other package imports ray.

What is computed, and what may be asked, is known here no more than in `api` and `scoring`, which this builds on.
"""

"""What answers the policy between its turns: users' environments and tools, in processes that can be killed.

It knows nothing of engines, tokens and learners: text in, text out. `rollout.episodes` drives an episode.
"""

"""Preference rows at the first wrong step, for Step-DPO. It trains nothing."""

"""Lesson 04: what runs in production, how it scales, and what is wrong when it does not."""

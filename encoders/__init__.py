"""Text and learned nets: purchase history to text to BERT to embedding, and the response heads.

Knows users and items; knows nothing of money, offers or budgets.
"""

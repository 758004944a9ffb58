"""Model folders in Hugging Face's layout.

embedded    the base model that comes with the installation, and the check of any model folder
"""

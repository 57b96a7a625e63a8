"""Erasure of rows from every file of an output, in steps that can be interrupted and repeated."""

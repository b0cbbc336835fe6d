"""Rows in and out: data set readers and the row journal."""

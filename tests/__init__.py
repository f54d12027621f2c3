"""Tests of the whole product; the server in them is the real one."""

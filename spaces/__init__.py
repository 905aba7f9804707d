"""Spaces to search, and what makes a network one."""

from nas.spaces.network import NetworkSpace as NetworkSpace

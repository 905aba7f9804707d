"""A space, a block and an optimizer for stage-nas."""

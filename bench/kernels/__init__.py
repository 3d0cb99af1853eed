"""Every operation of the kernels over the sizes of real models, against what a user would have instead."""

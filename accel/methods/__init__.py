"""The methods: one module each, with its configuration, its rule, and its installation.

Importing this package registers all of them. A new method is a new module and a line here.
"""

from accel.methods import adaspa as adaspa
from accel.methods import delta as delta
from accel.methods import flashblock as flashblock
from accel.methods import int8 as int8
from accel.methods import mixed as mixed
from accel.methods import nvfp4 as nvfp4
from accel.methods import nvfp4_weight as nvfp4_weight
from accel.methods import pisa as pisa
from accel.methods import tdc as tdc

"""What other libraries' layers become: `accelerate` and the registry behind it.

A library has a file of its own here, imported only when a model holds a module of that library. It defines, at top
level so that pickle finds them, subclasses of the library's classes *of the same name*, which override only the methods
that compute::

    @register(flows.Planar, runs="fk.planar")
    class Planar(flows.Planar):
        @staticmethod
        def refuse(module):
            '''Why this instance cannot be taken, in a few words; None: it can.'''
            return None if module.act in ("tanh", "leaky_relu") else f"unknown activation {module.act!r}"

        def forward(self, z):
            if not takes(z):  # what the op does not take is the library's to answer, errors included
                return super().forward(z)
            ...

`accelerate` assigns such a class to ``module.__class__``: parameters, buffers, hooks, state_dict keys and isinstance
are what they were, and `Report.undo` assigns the old class again. So a fast class has no `__init__`, no state and
nothing computed ahead that loading a state_dict, `.to()` or an assignment to an attribute could make stale; it calls
each conditioner exactly as often as the library does, and where a call cannot be taken any more after the conditioner
has run, it hands what was returned to the library's own method: ``flows.Planar.forward(Given(self, net=...), z)``.

A module is replaced if its class is exactly a registered one (not a subclass of it), with the methods that the library
shipped, none of them shadowed by an attribute of the instance, and `refuse` returns None.
"""

from .core import (
    Given,
    Left,
    Replaced,
    Report,
    accelerate,
    coverage,
    family,
    leave_alone,
    network,
    plain,
    register,
    takes,
)

__all__ = [
    "Given",
    "Left",
    "Replaced",
    "Report",
    "accelerate",
    "coverage",
    "family",
    "leave_alone",
    "network",
    "plain",
    "register",
    "takes",
]

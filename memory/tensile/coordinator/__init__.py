"""Several jobs on one device: who may hold how many bytes, and when. Events in, commands out."""

from tensile.coordinator.apportion import Member as Member
from tensile.coordinator.apportion import Portion as Portion
from tensile.coordinator.apportion import apportion as apportion
from tensile.coordinator.coordinator import Coordinator as Coordinator
from tensile.coordinator.coordinator import Share as Share
from tensile.coordinator.profile import Profile as Profile
from tensile.coordinator.profile import Rung as Rung
from tensile.coordinator.profile import declared as declared
from tensile.coordinator.profile import together as together
from tensile.coordinator.simulated import simulate_together as simulate_together
from tensile.coordinator.traced import traced as traced

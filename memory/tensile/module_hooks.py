"""Tells an execution when modules begin and end, and when gradients are complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tensile.execution import Execution
from tensile.residency import PARAMETER


class ModuleHooks:
    """Installed for the life of a session; silent while `active()` is false."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        parameters: Mapping[str, nn.Parameter],
        execution: Execution,
        active: Callable[[], bool],
    ) -> None:
        self._execution = execution
        self._active = active
        self._removable: list[RemovableHandle] = []
        self._entered: set[nn.Module] = set()
        self._completed: set[int] = set()
        self.take_in(modules, parameters)

    def take_in(
        self, modules: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Watch those of them that are new."""
        names = {id(parameter): name for name, parameter in parameters.items()}
        first: dict[nn.Module, str] = {}
        for name, module in modules.items():
            first.setdefault(module, name)
        for module, name in first.items():
            if module._parameters and module not in self._entered:
                self._entered.add(module)
                own = frozenset(
                    PARAMETER + names[id(p)] for p in module._parameters.values() if p is not None
                )
                self._removable += [
                    module.register_forward_pre_hook(self._entering(name, own)),
                    module.register_forward_hook(self._leaving(name)),
                ]
        for name, parameter in parameters.items():
            if parameter.requires_grad and id(parameter) not in self._completed:
                self._completed.add(id(parameter))
                handle = parameter.register_post_accumulate_grad_hook(self._complete(name))  # type: ignore[no-untyped-call]
                self._removable.append(handle)

    def remove(self) -> None:
        for handle in self._removable:
            handle.remove()
        self._removable.clear()

    def _entering(self, name: str, own: frozenset[str]) -> Callable[[nn.Module, object], None]:
        def enter(_: nn.Module, args: object) -> None:
            if self._active():
                self._execution.enter(name, own)

        return enter

    def _leaving(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def leave(_: nn.Module, args: object, result: object) -> None:
            if self._active():
                self._execution.leave(name)

        return leave

    def _complete(self, name: str) -> Callable[[Tensor], None]:
        def complete(_: Tensor) -> None:
            if self._active():
                self._execution.gradient(name)

        return complete

"""Ray Train's `TorchTrainer`, without what workers that are placed already and have their data make no use of."""

from typing import Any

from ray.train.torch import TorchTrainer


class GroupTrainer(TorchTrainer):  # type: ignore[misc]  # Ray leaves it untyped
    """Starts the workers with two actors fewer, each of which would import Ray Train, for seconds, and then be idle.

    One hands out shards of Ray Data's datasets, of which there are none. The other asks an autoscaler for machines,
    which are there already; the controller would wait until it has. A version of Ray that has other names for these
    starts them.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ != "DatasetsCallback"]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        if policy := settings.get("scaling_policy"):
            for request in ("_send_resource_request", "_maybe_send_resource_request", "_cancel_resource_request"):
                setattr(policy, request, _nothing)
        return super()._initialize_and_run_controller(**settings)


def _nothing() -> None:
    pass

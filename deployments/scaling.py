"""How many gateways there should be: by the requests in flight, those included that Serve does not count."""

from typing import Any

from ray.serve.config import AutoscalingContext

# The name under which a replica reports them (`deployments.ingress.IN_FLIGHT`); this module is shipped by value.
IN_FLIGHT = "in_flight"


def by_requests_in_flight(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Replicas = requests in flight / `target_ongoing_requests`; Serve adds bounds and delays."""
    running = context.current_num_replicas
    if running == 0:
        return context.target_num_replicas, {}
    reported = (context.aggregated_metrics or {}).get(IN_FLIGHT, {})
    total = context.total_num_requests + sum(reported.values())
    return total / context.config.get_target_ongoing_requests(), {}

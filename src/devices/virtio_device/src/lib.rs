//! What every virtio device component shares: guest memory, split queues, chains, bells.

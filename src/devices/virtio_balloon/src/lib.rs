//! The virtio-balloon device component: memory that the guest lends to the host (virtio 1.2 §5.5). What may enter is
//! what frees guest pages and gathers the guest's statistics, and the serving of
//! `fuchsia.virtualization.hardware.VirtioBalloon`.

#![forbid(unsafe_code)]

mod component;
mod device;

pub use component::run;
pub use device::{
    BalloonDevice, DEFLATE, F_DEFLATE_ON_OOM, F_PAGE_REPORTING, F_STATS_VQ, INFLATE, PAGE_SIZE,
    QUEUES, Stat, StatsError,
};

#[cfg(test)]
mod component_test;
#[cfg(test)]
mod device_test;

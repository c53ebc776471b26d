//! The system calls that are not written yet.

use fuchsia_zircon_types::*;

/// See the Zircon documentation of `zx_handle_close`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_handle_close(_handle: zx_handle_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_handle_close_many`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_handle_close_many(
    _handles: *const zx_handle_t,
    _num_handles: usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_handle_duplicate`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_handle_duplicate(
    _handle: zx_handle_t,
    _rights: zx_rights_t,
    _out: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_handle_replace`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_handle_replace(
    _handle: zx_handle_t,
    _rights: zx_rights_t,
    _out: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_object_wait_one`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_object_wait_one(
    _handle: zx_handle_t,
    _signals: zx_signals_t,
    _deadline: zx_time_t,
    _observed: *mut zx_signals_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_object_wait_many`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_object_wait_many(
    _items: *mut zx_wait_item_t,
    _num_items: usize,
    _deadline: zx_time_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_object_wait_async`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_object_wait_async(
    _handle: zx_handle_t,
    _port: zx_handle_t,
    _key: u64,
    _signals: zx_signals_t,
    _options: u32,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_object_signal`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_object_signal(
    _handle: zx_handle_t,
    _clear_mask: u32,
    _set_mask: u32,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_object_signal_peer`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_object_signal_peer(
    _handle: zx_handle_t,
    _clear_mask: u32,
    _set_mask: u32,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_object_get_info`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_object_get_info(
    _handle: zx_handle_t,
    _topic: u32,
    _buffer: *mut u8,
    _buffer_size: usize,
    _actual: *mut usize,
    _avail: *mut usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_object_get_property`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_object_get_property(
    _handle: zx_handle_t,
    _property: u32,
    _value: *mut u8,
    _value_size: usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_object_set_property`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_object_set_property(
    _handle: zx_handle_t,
    _property: u32,
    _value: *const u8,
    _value_size: usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_object_get_child`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_object_get_child(
    _handle: zx_handle_t,
    _koid: u64,
    _rights: zx_rights_t,
    _out: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_channel_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_channel_create(
    _options: u32,
    _out0: *mut zx_handle_t,
    _out1: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_channel_read`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_channel_read(
    _handle: zx_handle_t,
    _options: u32,
    _bytes: *mut u8,
    _handles: *mut zx_handle_t,
    _num_bytes: u32,
    _num_handles: u32,
    _actual_bytes: *mut u32,
    _actual_handles: *mut u32,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_channel_read_etc`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_channel_read_etc(
    _handle: zx_handle_t,
    _options: u32,
    _bytes: *mut u8,
    _handles: *mut zx_handle_info_t,
    _num_bytes: u32,
    _num_handles: u32,
    _actual_bytes: *mut u32,
    _actual_handles: *mut u32,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_channel_write`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_channel_write(
    _handle: zx_handle_t,
    _options: u32,
    _bytes: *const u8,
    _num_bytes: u32,
    _handles: *const zx_handle_t,
    _num_handles: u32,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_channel_write_etc`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_channel_write_etc(
    _handle: zx_handle_t,
    _options: u32,
    _bytes: *const u8,
    _num_bytes: u32,
    _handles: *mut zx_handle_disposition_t,
    _num_handles: u32,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_channel_call`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_channel_call(
    _handle: zx_handle_t,
    _options: u32,
    _deadline: zx_time_t,
    _args: *const zx_channel_call_args_t,
    _actual_bytes: *mut u32,
    _actual_handles: *mut u32,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_channel_call_etc`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_channel_call_etc(
    _handle: zx_handle_t,
    _options: u32,
    _deadline: zx_time_t,
    _args: *mut zx_channel_call_etc_args_t,
    _actual_bytes: *mut u32,
    _actual_handles: *mut u32,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_socket_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_socket_create(
    _options: u32,
    _out0: *mut zx_handle_t,
    _out1: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_socket_read`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_socket_read(
    _handle: zx_handle_t,
    _options: u32,
    _buffer: *mut u8,
    _buffer_size: usize,
    _actual: *mut usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_socket_write`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_socket_write(
    _handle: zx_handle_t,
    _options: u32,
    _buffer: *const u8,
    _buffer_size: usize,
    _actual: *mut usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_socket_set_disposition`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_socket_set_disposition(
    _handle: zx_handle_t,
    _disposition: u32,
    _disposition_peer: u32,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_event_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_event_create(_options: u32, _out: *mut zx_handle_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_eventpair_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_eventpair_create(
    _options: u32,
    _out0: *mut zx_handle_t,
    _out1: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmo_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmo_create(_size: u64, _options: u32, _out: *mut zx_handle_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmo_read`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmo_read(
    _handle: zx_handle_t,
    _buffer: *mut u8,
    _offset: u64,
    _buffer_size: usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmo_write`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmo_write(
    _handle: zx_handle_t,
    _buffer: *const u8,
    _offset: u64,
    _buffer_size: usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmo_get_size`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmo_get_size(_handle: zx_handle_t, _size: *mut u64) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmo_set_size`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmo_set_size(_handle: zx_handle_t, _size: u64) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmo_op_range`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmo_op_range(
    _handle: zx_handle_t,
    _op: u32,
    _offset: u64,
    _size: u64,
    _buffer: *mut u8,
    _buffer_size: usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmo_create_child`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmo_create_child(
    _handle: zx_handle_t,
    _options: u32,
    _offset: u64,
    _size: u64,
    _out: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmo_replace_as_executable`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmo_replace_as_executable(
    _handle: zx_handle_t,
    _vmex: zx_handle_t,
    _out: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmo_set_cache_policy`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmo_set_cache_policy(_handle: zx_handle_t, _cache_policy: u32) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmo_transfer_data`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmo_transfer_data(
    _dst_vmo: zx_handle_t,
    _options: u32,
    _offset: u64,
    _length: u64,
    _src_vmo: zx_handle_t,
    _src_offset: u64,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmar_map`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmar_map(
    _handle: zx_handle_t,
    _options: zx_vm_option_t,
    _vmar_offset: usize,
    _vmo: zx_handle_t,
    _vmo_offset: u64,
    _len: usize,
    _mapped_addr: *mut zx_vaddr_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmar_unmap`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmar_unmap(_handle: zx_handle_t, _addr: zx_vaddr_t, _len: usize) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmar_protect`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmar_protect(
    _handle: zx_handle_t,
    _options: zx_vm_option_t,
    _addr: zx_vaddr_t,
    _len: usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmar_allocate`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmar_allocate(
    _parent_vmar: zx_handle_t,
    _options: zx_vm_option_t,
    _offset: usize,
    _size: usize,
    _child_vmar: *mut zx_handle_t,
    _child_addr: *mut zx_vaddr_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vmar_destroy`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vmar_destroy(_handle: zx_handle_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_port_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_port_create(_options: u32, _out: *mut zx_handle_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_port_queue`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_port_queue(_handle: zx_handle_t, _packet: *const zx_port_packet_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_port_wait`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_port_wait(
    _handle: zx_handle_t,
    _deadline: zx_time_t,
    _packet: *mut zx_port_packet_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_port_cancel`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_port_cancel(_handle: zx_handle_t, _source: zx_handle_t, _key: u64) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_timer_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_timer_create(
    _options: u32,
    _clock_id: zx_clock_t,
    _out: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_timer_set`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_timer_set(
    _handle: zx_handle_t,
    _deadline: zx_time_t,
    _slack: zx_duration_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_timer_cancel`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_timer_cancel(_handle: zx_handle_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_clock_get_monotonic`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_clock_get_monotonic() -> zx_time_t {
    0
}

/// See the Zircon documentation of `zx_nanosleep`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_nanosleep(_deadline: zx_time_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_deadline_after`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_deadline_after(_nanoseconds: zx_duration_t) -> zx_time_t {
    0
}

/// See the Zircon documentation of `zx_process_exit`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_process_exit(_retcode: i64) {
    std::process::exit(_retcode as i32)
}

/// See the Zircon documentation of `zx_task_kill`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_task_kill(_handle: zx_handle_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_job_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_job_create(
    _parent_job: zx_handle_t,
    _options: u32,
    _out: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_guest_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_guest_create(
    _resource: zx_handle_t,
    _options: u32,
    _guest_handle: *mut zx_handle_t,
    _vmar_handle: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_guest_set_trap`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_guest_set_trap(
    _handle: zx_handle_t,
    _kind: u32,
    _addr: zx_vaddr_t,
    _size: usize,
    _port_handle: zx_handle_t,
    _key: u64,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vcpu_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vcpu_create(
    _guest: zx_handle_t,
    _options: u32,
    _entry: zx_vaddr_t,
    _out: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vcpu_enter`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vcpu_enter(_handle: zx_handle_t, _packet: *mut zx_port_packet_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vcpu_kick`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vcpu_kick(_handle: zx_handle_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vcpu_interrupt`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vcpu_interrupt(_handle: zx_handle_t, _vector: u32) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vcpu_read_state`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vcpu_read_state(
    _handle: zx_handle_t,
    _kind: u32,
    _buffer: *mut u8,
    _buffer_size: usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vcpu_write_state`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vcpu_write_state(
    _handle: zx_handle_t,
    _kind: u32,
    _buffer: *const u8,
    _buffer_size: usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_system_get_physmem`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_system_get_physmem() -> u64 {
    0
}

/// See the Zircon documentation of `zx_system_get_num_cpus`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_system_get_num_cpus() -> u32 {
    0
}

/// See the Zircon documentation of `zx_system_get_page_size`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_system_get_page_size() -> u32 {
    0
}

/// See the Zircon documentation of `zx_ticks_get`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_ticks_get() -> zx_ticks_t {
    0
}

/// See the Zircon documentation of `zx_ticks_per_second`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_ticks_per_second() -> zx_ticks_t {
    0
}

/// See the Zircon documentation of `zx_cprng_draw`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_cprng_draw(_buffer: *mut u8, _buffer_size: usize) {}

/// See the Zircon documentation of `zx_resource_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_resource_create(
    _parent_rsrc: zx_handle_t,
    _options: u32,
    _base: u64,
    _size: usize,
    _name: *const u8,
    _name_size: usize,
    _resource_out: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

//! What a process asks of the operating system.
//!
//! [`scheduling`] says how it is scheduled beside others, [`process`] what it uses of processor and memory,
//! [`thread_time`] how long a thread waited for a processor. Deliberately absent: anything of images, messages or models.

pub mod process;
pub mod scheduling;
pub mod thread_time;

//! Saved devices. Times are virtual nanoseconds since the machine started.

use crate::saved::codec::saved;

saved! {
    /// One 8259A.
    SavedPicChip {
        /// Input levels.
        lines: u8,
        /// Unacknowledged edges whose input is still high.
        edges: u8,
        /// Inputs that are level-triggered.
        elcr: u8,
        /// Interrupt mask register.
        imr: u8,
        /// In-service register.
        isr: u8,
        /// Vector of input 0, a multiple of 8.
        vector_base: u8,
        /// Input of lowest priority, 0 to 7.
        lowest: u8,
        /// Initialisation word due next: 0 none, else 2, 3 or 4 as 1, 2 or 3.
        expect: u8,
        /// ICW1 announced ICW4.
        wants_icw4: bool,
        /// ICW1 said that there is no ICW3.
        single: bool,
        /// Automatic end of interrupt.
        auto_eoi: bool,
        /// Rotation at automatic ends.
        rotate_on_auto_eoi: bool,
        /// Special mask mode.
        special_mask: bool,
        /// Special fully nested mode.
        special_fully_nested: bool,
        /// The next read polls.
        poll: bool,
        /// The even address reads the in-service register, else the request register.
        read_isr: bool,
    }
}

saved! {
    /// Both interrupt controllers.
    SavedPic {
        /// First and second chip.
        chips: [SavedPicChip; 2],
    }
}

saved! {
    /// The counting element of a timer channel.
    SavedPitRun {
        /// 0 idle, 1 counting, 2 stopped by the gate.
        kind: u8,
        /// Counting: the tick of the load. Stopped: ticks since the load. Idle: 0.
        tick: i64,
        /// Ticks of the count; idle: 0.
        reload: u32,
    }
}

saved! {
    /// One timer channel.
    SavedPitChannel {
        /// 0 to 5.
        mode: u8,
        /// 1 low byte, 2 high byte, 3 both.
        access: u8,
        /// Counts in decimal.
        bcd: bool,
        /// Level of the gate.
        gate: bool,
        /// The count written last, in ticks.
        count: Option<u32>,
        /// A count that is loaded at the end of the (half) period.
        next_reload: Option<u32>,
        /// The counting element.
        run: SavedPitRun,
        /// First byte of a two-byte write.
        written_low: Option<u8>,
        /// The next read gives the high byte.
        read_high: bool,
        /// Latched count.
        latched_count: Option<u16>,
        /// Latched status.
        latched_status: Option<u8>,
    }
}

saved! {
    /// The timer and port 0x61.
    SavedPit {
        /// Channels 0 to 2.
        channels: [SavedPitChannel; 3],
        /// Port 0x61 bit 1.
        speaker: bool,
        /// Ticks since the machine started.
        tick: i64,
        /// An edge that the interrupt controller has not seen.
        rose: bool,
    }
}

saved! {
    /// The serial port.
    SavedUart {
        /// Interrupt enable register.
        ier: u8,
        /// Line control register.
        lcr: u8,
        /// Modem control register.
        mcr: u8,
        /// Error bits of the line status register.
        line_errors: u8,
        /// Change bits of the modem status register.
        modem_deltas: u8,
        /// Scratch register.
        scratch: u8,
        /// Divisor latch.
        divisor: u16,
        /// FIFOs are on.
        fifo: bool,
        /// Bytes at which the receive interrupt fires.
        trigger: u8,
        /// The transmit-empty interrupt is pending.
        transmit_empty: bool,
        /// Received bytes, oldest first, at most 16.
        received: Vec<u8>,
        /// Host input on its way, at most 65,536 bytes.
        incoming: Vec<u8>,
        /// When the next byte arrives.
        arrival_ns: Option<u64>,
        /// When the receive time-out fires or fired.
        timeout_ns: Option<u64>,
        /// A sent byte that was not taken yet.
        output: Option<u8>,
        /// Latest instant seen.
        now_ns: u64,
        /// Interrupt output.
        high: bool,
        /// An edge that the interrupt controller has not seen.
        rose: bool,
    }
}

saved! {
    /// The real-time clock and its memory.
    SavedCmos {
        /// Selected register.
        index: u8,
        /// Registers and memory.
        registers: [u8; 128],
        /// Date at divider second 0, in seconds since 1970.
        offset_s: i64,
        /// What the divider is ahead of virtual time.
        phase_ns: u32,
        /// Latest instant seen.
        now_ns: u64,
        /// Interrupt output.
        high: bool,
        /// An edge that the interrupt controller has not seen.
        rose: bool,
    }
}

saved! {
    /// A byte in the keyboard controller's output buffer.
    SavedReply {
        /// The byte.
        byte: u8,
        /// Status bits that go with it.
        status: u8,
    }
}

saved! {
    /// The keyboard controller and the reset registers.
    SavedKeyboard {
        /// Command byte.
        command_byte: u8,
        /// Command that waits for its parameter.
        pending: Option<u8>,
        /// Output buffer.
        reply: Option<SavedReply>,
        /// The last write went to the command port.
        last_was_command: bool,
        /// Controller memory.
        memory: [u8; 32],
        /// Port 0x92.
        control_a: u8,
        /// Port 0xcf9.
        reset_control: u8,
        /// A reset that was not taken yet.
        reset: bool,
        /// Interrupt output.
        high: bool,
        /// An edge that the interrupt controller has not seen.
        rose: bool,
    }
}

saved! {
    /// All devices.
    SavedBoard {
        /// Latest instant seen.
        now_ns: u64,
        /// Interrupt controllers.
        pic: SavedPic,
        /// Timer.
        pit: SavedPit,
        /// Serial port.
        uart: SavedUart,
        /// Clock and memory.
        cmos: SavedCmos,
        /// Keyboard controller.
        keyboard: SavedKeyboard,
    }
}

# A system of one sector, for tests of machines: it says `ready` at the serial port, and does what it is told there.
#
#   q  powers off           r  resets               f  floods the console
#   d  fills its disk, and says `full`              w  writes a qcow2 header to its disk, and says `done`
#   c  counts in sector 8 of its first disk, and then of its second, without end
#   other letters come back in the other case; at the power button it says `button` and powers off
.code16
.globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    movb %dl, drive
    movw $0x602, %dx
    movw $0x100, %ax
    outw %ax, %dx
    movw $ready, %si
    call puts
main:
    movw $0x600, %dx
    inw %dx, %ax
    testw $0x100, %ax
    jnz button
    movw $0x3fd, %dx
    inb %dx, %al
    testb $1, %al
    jz main
    movw $0x3f8, %dx
    inb %dx, %al
    cmpb $'q', %al
    je off
    cmpb $'r', %al
    je reset
    cmpb $'f', %al
    je flood
    cmpb $'w', %al
    je header
    cmpb $'d', %al
    je fill
    cmpb $'c', %al
    je tally
    xorb $0x20, %al
    call putc
    jmp main
button:
    movw $pressed, %si
    call puts
off:
    movw $0x604, %dx
    movw $0x2000, %ax
    outw %ax, %dx
    jmp off
reset:
    movb $6, %al
    movw $0xcf9, %dx
    outb %al, %dx
    jmp reset
flood:
    movw $ready, %si
    call puts
    jmp flood
header:
    movw $packet, %si
    movw $qcow2, buffer
    movl $0, sector
    call write
    movw $done, %si
    call puts
    jmp main
fill:
    movw $0x8000, buffer
    movl $1, sector
    movw $32, count
1:  call write
    jc 2f
    addl $32, sector
    jmp 1b
2:  movw $full, %si
    call puts
    jmp main
tally:
    movw $0x8000, buffer
    movl $8, sector
1:  incl 0x8000
    movb $0x80, drive
    call write
    incb drive
    call write
    jmp 1b
write:
    movw $packet, %si
    movb drive, %dl
    movb $0x43, %ah
    xorb %al, %al
    int $0x13
    ret
puts:
    lodsb
    testb %al, %al
    jz 1f
    call putc
    jmp puts
1:  ret
putc:
    pushw %ax
    movw $0x3fd, %dx
1:  inb %dx, %al
    testb $0x20, %al
    jz 1b
    popw %ax
    movw $0x3f8, %dx
    outb %al, %dx
    ret
ready:   .asciz "ready\r\n"
pressed: .asciz "button\r\n"
done:    .asciz "done\r\n"
full:    .asciz "full\r\n"
drive:   .byte 0
packet:  .byte 16, 0
count:   .word 1
buffer:  .word 0, 0
sector:  .long 0, 0
qcow2:   .ascii "QFI\373\0\0\0\003\0\0\0\0\0\0\0\150\0\0\0\013"
         .org 440
         .org 510
         .word 0xaa55

# An AF_PACKET socket on one interface, for tests: what it sees did not pass through our code.
#
# stdin:  'F' length frame (send it), 'S' (report everything that came in so far, then say so)
# stdout: 'F' length frame (came in), 'A' errno (frame sent), 'S' (synchronised)
# Lengths and errnos are 32-bit little-endian. Arguments: interface index, 1 for PACKET_VNET_HDR.
use strict;
use warnings;
my ($index, $vnet_header) = @ARGV;
my ($AF_PACKET, $SOCK_RAW, $ETH_P_ALL) = (17, 3, 3);
my ($SOL_SOCKET, $SO_RCVBUFFORCE, $SOL_PACKET) = (1, 33, 263);
my ($PACKET_VNET_HDR, $PACKET_IGNORE_OUTGOING, $MSG_DONTWAIT) = (15, 23, 0x40);
my $protocol = unpack('S', pack('n', $ETH_P_ALL));

socket(my $socket, $AF_PACKET, $SOCK_RAW, 0) or die "socket: $!";
setsockopt($socket, $SOL_SOCKET, $SO_RCVBUFFORCE, pack('i', 64 << 20)) or die "buffer: $!";
setsockopt($socket, $SOL_PACKET, $PACKET_IGNORE_OUTGOING, pack('i', 1)) or die "outgoing: $!";
if ($vnet_header) {
  setsockopt($socket, $SOL_PACKET, $PACKET_VNET_HDR, pack('i', 1)) or die "header: $!";
}
bind($socket, pack('S S i S C C a8', $AF_PACKET, $protocol, $index, 0, 0, 0, '')) or die "bind: $!";
binmode(STDIN);
binmode(STDOUT);
say_all('S');

my $stdin = fileno(STDIN);
my $packets = fileno($socket);
while (1) {
  my $ready = '';
  vec($ready, $stdin, 1) = 1;
  vec($ready, $packets, 1) = 1;
  select($ready, undef, undef, undef);
  receive() if vec($ready, $packets, 1);
  next unless vec($ready, $stdin, 1);
  my $command = read_all(1);
  if ($command eq 'F') {
    my $frame = read_all(unpack('V', read_all(4)));
    my $sent = syswrite($socket, $frame);
    say_all('A' . pack('V', defined $sent ? 0 : $! + 0));
  } else {
    1 while receive();
    say_all('S');
  }
}

sub receive {
  return 0 unless defined recv($socket, my $frame, 70000, $MSG_DONTWAIT);
  say_all('F' . pack('V', length $frame) . $frame);
  return 1;
}

sub read_all {
  my ($length) = @_;
  my $bytes = '';
  while (length $bytes < $length) {
    my $count = sysread(STDIN, $bytes, $length - length $bytes, length $bytes);
    exit 0 unless $count;
  }
  return $bytes;
}

sub say_all {
  my ($bytes) = @_;
  my $done = 0;
  while ($done < length $bytes) {
    my $count = syswrite(STDOUT, $bytes, length($bytes) - $done, $done);
    exit 0 unless $count;
    $done += $count;
  }
}

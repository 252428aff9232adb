# AF_PACKET sockets for tests: what they see did not pass through our code.
#
# stdin:  'O' id index header (open on an interface; header 1 is PACKET_VNET_HDR), 'C' id (close),
#         'F' id length frame (send), 'S' id (report everything that came in so far)
# stdout: 'F' id length frame (came in), 'A' id errno (the command before is done)
# Numbers are 32-bit little-endian.
use strict;
use warnings;
my ($AF_PACKET, $SOCK_RAW, $ETH_P_ALL) = (17, 3, 3);
my ($SOL_SOCKET, $SO_RCVBUFFORCE, $SOL_PACKET) = (1, 33, 263);
my ($PACKET_VNET_HDR, $PACKET_IGNORE_OUTGOING, $MSG_DONTWAIT) = (15, 23, 0x40);
my $protocol = unpack('S', pack('n', $ETH_P_ALL));
my %sockets;
binmode(STDIN);
binmode(STDOUT);

while (1) {
  my $ready = '';
  vec($ready, fileno(STDIN), 1) = 1;
  vec($ready, fileno($_), 1) = 1 for values %sockets;
  select($ready, undef, undef, undef);
  for my $id (keys %sockets) {
    receive($id) if vec($ready, fileno($sockets{$id}), 1);
  }
  command() if vec($ready, fileno(STDIN), 1);
}

sub command {
  my $kind = read_all(1);
  my $id = number();
  my $errno = 0;
  if ($kind eq 'O') {
    $errno = opened($id, number(), number()) ? 0 : $! + 0;
  } elsif ($kind eq 'F') {
    my $frame = read_all(number());
    $errno = $! + 0 unless defined syswrite($sockets{$id}, $frame);
  } elsif ($kind eq 'S') {
    1 while receive($id);
  } else {
    close(delete $sockets{$id});
  }
  say_all('A' . pack('V2', $id, $errno));
}

sub opened {
  my ($id, $index, $header) = @_;
  socket(my $socket, $AF_PACKET, $SOCK_RAW, 0) or return 0;
  setsockopt($socket, $SOL_SOCKET, $SO_RCVBUFFORCE, pack('i', 64 << 20)) or return 0;
  setsockopt($socket, $SOL_PACKET, $PACKET_IGNORE_OUTGOING, pack('i', 1)) or return 0;
  setsockopt($socket, $SOL_PACKET, $PACKET_VNET_HDR, pack('i', $header)) or return 0;
  my $address = pack('S S i S C C a8', $AF_PACKET, $protocol, $index, 0, 0, 0, '');
  bind($socket, $address) or return 0;
  $sockets{$id} = $socket;
  return 1;
}

sub receive {
  my ($id) = @_;
  return 0 unless defined recv($sockets{$id}, my $frame, 70000, $MSG_DONTWAIT);
  say_all('F' . pack('V2', $id, length $frame) . $frame);
  return 1;
}

sub number {
  return unpack('V', read_all(4));
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

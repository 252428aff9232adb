-- Shows the device-IOTLB messages of captures that `vhost-iotlb pcapng` writes (LINKTYPE_USER0).
--
--   wireshark -X lua_script:vhost-iotlb.lua capture.pcapng
--   tshark -X lua_script:vhost-iotlb.lua -r capture.pcapng -Y 'vhost_iotlb.type == 1'
--
-- The layout is that of lib/trace/pcapng.ts: 32 bytes, little-endian.

local iotlb = Proto('vhost_iotlb', 'vhost device IOTLB message')

local TYPES = { [1] = 'MISS', [2] = 'UPDATE', [3] = 'INVALIDATE' }
local ACCESS = { [0] = 'none', [1] = 'read', [2] = 'write', [3] = 'readwrite' }

local f = {
  version = ProtoField.uint8('vhost_iotlb.version', 'Version'),
  type = ProtoField.uint8('vhost_iotlb.type', 'Type', base.DEC, TYPES),
  perm = ProtoField.uint8('vhost_iotlb.perm', 'Access', base.DEC, ACCESS),
  device = ProtoField.uint8('vhost_iotlb.device', 'Device'),
  error = ProtoField.uint32('vhost_iotlb.error', 'Error number'),
  iova = ProtoField.uint64('vhost_iotlb.iova', 'I/O virtual address', base.HEX),
  size = ProtoField.uint64('vhost_iotlb.size', 'Size (0: 2^64)', base.DEC),
  uaddr = ProtoField.uint64('vhost_iotlb.uaddr', 'Host virtual address', base.HEX),
}
iotlb.fields = f

local refused = ProtoExpert.new('vhost_iotlb.refused', 'The kernel refused the message',
  expert.group.RESPONSE_CODE, expert.severity.WARN)
iotlb.experts = { refused }

local function hex(value)
  local digits = string.gsub(value:tohex(16), '^0+(.)', '%1')
  return '0x' .. digits
end

function iotlb.dissector(buffer, packet, root)
  if buffer:len() < 32 or buffer(0, 1):uint() ~= 1 then return 0 end
  packet.cols.protocol = 'IOTLB'
  local tree = root:add(iotlb, buffer(0, 32))
  local kind = buffer(1, 1):uint()
  tree:add(f.version, buffer(0, 1))
  tree:add(f.type, buffer(1, 1))
  tree:add(f.device, buffer(3, 1))
  tree:add_le(f.iova, buffer(8, 8))
  local summary = (TYPES[kind] or 'unknown') .. ' iova ' .. hex(buffer(8, 8):le_uint64())
  if kind ~= 1 then
    tree:add_le(f.size, buffer(16, 8))
    summary = summary .. ' size ' .. tostring(buffer(16, 8):le_uint64())
  end
  if kind == 2 then
    tree:add_le(f.uaddr, buffer(24, 8))
    summary = summary .. ' -> ' .. hex(buffer(24, 8):le_uint64())
  end
  if kind ~= 3 then
    tree:add(f.perm, buffer(2, 1))
    summary = summary .. ' ' .. (ACCESS[buffer(2, 1):uint()] or '?')
  end
  tree:add_le(f.error, buffer(4, 4))
  if buffer(4, 4):le_uint() ~= 0 then
    tree:add_proto_expert_info(refused)
    summary = summary .. ' REFUSED'
  end
  packet.cols.info = summary
  return 32
end

DissectorTable.get('wtap_encap'):add(wtap.USER0, iotlb)

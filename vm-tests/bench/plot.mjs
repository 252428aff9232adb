// Draws what `vhost-iotlb bench` measured. vega and vega-lite are development dependencies: without
// them there is no drawing, and the numbers are the same.

/** @returns the SVG, or undefined where the libraries are not installed */
export function draw(report) {
  return svgOf(chart(report))
}

/** @param chart of vega-lite. @returns as `draw` */
export async function svgOf(chart) {
  let vega, lite
  try {
    vega = await import('vega')
    lite = await import('vega-lite')
  } catch (error) {
    if (error.code === 'ERR_MODULE_NOT_FOUND') return undefined
    throw error
  }
  const { spec } = lite.compile(chart)
  return new vega.View(vega.parse(spec), { renderer: 'none' }).toSVG()
}

const POLICIES = ['exact', 'merged', 'on-miss', 'on-kick']

function chart({ rows, env }) {
  const of = (section) => rows.filter((row) => row.section === section)
  const modes = of('modes').map(({ name, figures }) => {
    const [mapping, policy] = name.split(', ')
    return { mapping, policy, pps: figures.pps, misses: figures.misses1000 }
  })
  const mappings = [...new Set(modes.map(({ mapping }) => mapping))]
  const bars = (title, field) => ({
    title,
    width: 420,
    height: 170,
    data: { values: modes },
    mark: 'bar',
    encoding: {
      x: {
        field: 'mapping',
        type: 'nominal',
        sort: mappings,
        title: null,
        axis: { labelAngle: 0 },
      },
      xOffset: { field: 'policy', sort: POLICIES },
      y: { field, type: 'quantitative', title: null },
      color: { field: 'policy', sort: POLICIES, title: 'policy' },
    },
  })
  const exposure = of('exposure').flatMap(({ name, figures }) => [
    { name, what: 'unmapped, still reachable', kib: figures.staleKiB },
    { name, what: 'in flight', kib: figures.inFlightKiB },
    { name, what: 'reachable', kib: figures.reachableKiB },
  ])
  const peers = ['out', 'in', 'forward'].flatMap((section) =>
    of(section).map(({ name, figures }) => ({ section, name, pps: figures.pps })),
  )
  return {
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    background: 'white',
    title: `${env.kernel}, ${env.machine ?? 'this host'}, ${env.date}`,
    vconcat: [
      bars('Packets a second by mapping and policy, 64-byte frames out', 'pps'),
      bars('Misses in 1000 packets', 'misses'),
      {
        title: 'Packets a second by other means',
        width: 420,
        height: 170,
        data: { values: peers },
        mark: 'bar',
        encoding: {
          x: {
            field: 'section',
            type: 'nominal',
            sort: null,
            title: null,
            axis: { labelAngle: 0 },
          },
          xOffset: { field: 'name' },
          y: { field: 'pps', type: 'quantitative', title: null },
          color: { field: 'name', title: 'by' },
        },
      },
      ...(exposure.length > 0 ? [reach(exposure)] : []),
    ],
    resolve: { scale: { x: 'independent', xOffset: 'independent', color: 'independent' } },
  }
}

/** Means over time, which differ by powers of ten; what is nothing has no bar. */
function reach(values) {
  return {
    title: 'Memory that the device can reach, in KiB, by mapping',
    width: 420,
    height: 170,
    data: { values: values.filter(({ kib }) => kib > 0) },
    mark: { type: 'bar', clip: true },
    encoding: {
      x: {
        field: 'name',
        type: 'nominal',
        sort: [...new Set(values.map(({ name }) => name))],
        title: null,
        axis: { labelAngle: 0 },
      },
      xOffset: { field: 'what', sort: [...new Set(values.map(({ what }) => what))] },
      y: {
        field: 'kib',
        type: 'quantitative',
        title: null,
        scale: { type: 'log', domainMin: 0.01 },
      },
      y2: { datum: 0.01 },
      color: { field: 'what', title: 'KiB' },
    },
  }
}

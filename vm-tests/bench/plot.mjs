// Draws what `vhost-iotlb bench` measured. vega and vega-lite are development dependencies: without
// them there is no drawing, and the numbers are the same.

/** @returns the SVG, or undefined where the libraries are not installed */
export async function draw(report) {
  let vega, lite
  try {
    vega = await import('vega')
    lite = await import('vega-lite')
  } catch (error) {
    if (error.code === 'ERR_MODULE_NOT_FOUND') return undefined
    throw error
  }
  const { spec } = lite.compile(chart(report))
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
    ],
    resolve: { scale: { x: 'independent', xOffset: 'independent', color: 'independent' } },
  }
}
